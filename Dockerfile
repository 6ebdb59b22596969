# The bench with the versions that constraints.txt pins. Results and data lie outside:
#   docker build -t distillation-bench .
#   docker run --rm -v "$PWD/results:/bench/results" -v "$PWD/data:/bench/data" distillation-bench run quick
FROM python:3.12-slim
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /bench
COPY . .
RUN make .venv/.installed
ENTRYPOINT ["./run_bench.py"]
CMD ["run", "quick"]
