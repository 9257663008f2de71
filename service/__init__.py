"""The serving half: onnxruntime, NumPy and FastAPI; never torch."""

__version__ = "0.1.0"
