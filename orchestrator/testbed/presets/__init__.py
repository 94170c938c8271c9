"""What the testbed and the demo start from: the AI4I schema and an experiment on it."""

from pathlib import Path

AI4I_SCHEMA = Path(__file__).parent / "ai4i.yaml"
AI4I_EXPERIMENT = Path(__file__).parent / "ai4i-fedavg.yaml"
