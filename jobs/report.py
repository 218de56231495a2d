"""Write the page about what there is so far.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/report.py configs/phantom.yaml
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("report")
