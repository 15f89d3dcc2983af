"""What Triton's models do: one file per kind of model, imported by `model.py`.

Each offers `TritonPythonModel`, the class that Triton's Python backend looks for, and the one in
Triton's own process (`hpsbench.servers.in_process`).
"""
