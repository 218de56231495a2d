"""Learn from labeled cases, asked about as if they had no label, how good a round's answers are.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/calibrate.py configs/phantom.yaml -r 0
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("calibrate")
