# A CPU image by default. For CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# OpenCV's wheel needs these two at run time.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/weaksam
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision -c constraints.txt
COPY weaksam weaksam
COPY weaksam_cli weaksam_cli
COPY stages stages
RUN pip install --no-cache-dir . -c constraints.txt

# Mount data sets at /data and results at /runs: docker run -v "$PWD/data:/data" -v "$PWD/runs:/runs" weaksam demo
ENV WEAKSAM_DATA=/data
WORKDIR /
RUN useradd --create-home weaksam && mkdir -p /data /runs && chown weaksam /data /runs
USER weaksam
ENTRYPOINT ["weaksam"]
CMD ["--help"]
