"""What runs inside Triton's Python backend: one file per kind of model, imported by `model.py`.

Each offers `TritonPythonModel`, the class that Triton's stub looks for.
"""
