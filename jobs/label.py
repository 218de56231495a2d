"""Make a round's pseudo-labels: prompt the generalist on every unlabeled case, curate what it answers.

ray job submit --runtime-env configs/runtime_env.yaml -- python jobs/label.py configs/phantom.yaml -r 0
"""

from tutelage.cli import job

if __name__ == "__main__":
    job("label")
