# Stage 1 installs the serving half into a virtual environment; stage 2 takes that, the code and the models.
FROM python:3.11-slim-bookworm AS build
# gpu.txt brings onnxruntime's CUDA build: docker build --build-arg PROVIDER=cuda .
ARG PROVIDER=cpu
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/serve.txt requirements/gpu.txt /tmp/
RUN pip install --no-compile -r /tmp/serve.txt \
 && if [ "$PROVIDER" = cuda ]; then pip uninstall --yes onnxruntime && pip install --no-compile -r /tmp/gpu.txt; fi
# Beside Python's module, onnxruntime's wheel brings the library once more, for C, and tools for training and conversion:
# 44 MB that nothing here opens.
RUN cd /opt/venv/lib/python3.11/site-packages/onnxruntime && rm -rf transformers quantization tools \
 && if [ "$PROVIDER" = cpu ]; then rm -f capi/libonnxruntime.so*; fi
RUN pip uninstall --yes pip setuptools \
 && find /opt/venv -name tests -type d -path '*/numpy/*' -prune -exec rm -rf {} +

FROM python:3.11-slim-bookworm
ARG PROVIDER=cpu
RUN useradd --create-home --uid 10001 carousel
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv
COPY service service
COPY model_repository model_repository
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CAROUSEL_HOST=0.0.0.0 CAROUSEL_PORT=8000 CAROUSEL_PROVIDER=$PROVIDER CAROUSEL_LOG_FORMAT=json
USER carousel
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['CAROUSEL_PORT']}/health/ready\", timeout=2)"]
CMD ["python", "-m", "service"]
