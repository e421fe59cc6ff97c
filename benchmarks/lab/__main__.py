"""`lossguard-lab`, or `python -m lab` in `benchmarks/`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ["KERAS_BACKEND"] = "tensorflow"

if __name__ == "__main__":
    from lab.cli import app

    app()
