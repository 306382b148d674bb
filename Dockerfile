# docker build --tag medreason .
# docker run --rm medreason                                                  the quickstart: no GPU, no hub
# docker run --rm --gpus all --volume "$PWD/runs:/medreason/runs" --volume "$HOME/.cache:/root/.cache" \
#     medreason python -m medreason.train lora.r=32
FROM python:3.12-slim

# a C compiler: triton builds its launchers with it when a GPU is first used
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /medreason

# what seldom changes first: the image of a new commit shares these layers
COPY requirements.lock ./
RUN pip install --no-cache-dir uv \
    && uv pip sync --system --no-cache --require-hashes --compile-bytecode requirements.lock
COPY . .
# the cache with the converted models not where the volume above would hide it
ENV MEDREASON_CACHE=/medreason/.cache
RUN uv pip install --system --no-cache --no-deps --editable . \
    && python -m medreason.models.embedded

CMD ["python", "-m", "medreason.train", "experiments=quickstart"]
