"""Decide which of a round's answers to believe.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/curate.py configs/phantom.yaml -r 0
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("curate")
