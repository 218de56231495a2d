"""Train the specialist of a stage.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/train.py configs/phantom.yaml -r 0
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("train")
