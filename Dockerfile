# The binary and the libraries it needs. Written on a machine without a Docker engine: not built there.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake libssl-dev pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tidegate

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home tidegate
COPY --from=build /src/target/release/tidegate /usr/local/bin/tidegate
USER tidegate
WORKDIR /project
ENTRYPOINT ["tidegate"]
