"""Train the specialist of a stage; without -r the one that learns from labels alone.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/train.py configs/quickstart.yaml

Stopped in any way and submitted again, it goes on from its last checkpoint.
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("train")
