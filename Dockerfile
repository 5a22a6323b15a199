# CPU:  docker build -t lddgan_kernels .
# CUDA: docker build -t lddgan_kernels --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 \
#         --build-arg BUILD=cuda .
#       (a CUDA of the PyTorch's major version; the GPU is needed only to run it)
# docker run -it -v $PWD/runs:/work/runs lddgan_kernels python -m lddgan_kernels.train
ARG BASE=ubuntu:24.04
FROM ${BASE} AS build
ARG TORCH=2.13.0
ARG BUILD=cpu
ARG INDEX=
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
# INDEX: another package index, such as PyTorch's own of CPU builds, which are smaller.
RUN pip install --no-cache-dir torch==${TORCH} ${INDEX:+--index-url ${INDEX}} \
  && pip install --no-cache-dir "setuptools>=77" "cmake>=3.24" ninja "pybind11>=2.13"
COPY . /source
RUN LDDGAN_BUILD=${BUILD} pip wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels /source

FROM ${BASE}
# g++ is for torch.compile and AOTInductor.
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-dev \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
COPY --from=build /wheels /wheels
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir /wheels/*.whl && python -m lddgan_kernels.info
WORKDIR /work
CMD ["python", "-m", "lddgan_kernels.info"]
