"""All rounds of a campaign, on the cluster the job was submitted to.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/run.py configs/phantom.yaml
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("run")
