"""Decide whether the specialist of a stage becomes the champion.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/promote.py configs/phantom.yaml -r 0
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("promote")
