# One image for the four services; docker-compose.yml says which one runs.
FROM python:3.12-slim

# A package index that has the wanted build of torch, e.g. a CPU-only one; the default index if empty.
ARG TORCH_INDEX=""

WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY services services
RUN pip install --no-cache-dir -c constraints.txt '.[worker]'

RUN useradd --uid 10001 --home-dir /app --create-home hekaton
USER hekaton
WORKDIR /app
CMD ["hekaton", "--help"]
