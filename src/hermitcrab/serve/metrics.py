"""Prometheus metrics: under vLLM's names, which dashboards know, and under those of OpenTelemetry's GenAI conventions.

Sources: https://docs.vllm.ai/en/latest/usage/metrics.html and https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
(dots become underscores, the unit goes behind the name, as the Prometheus exporter does it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
LONG = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84)
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """What is counted. `gauges` gives, when asked, the state of each model: {model: {name: value}}."""

    def __init__(self, gauges: Callable[[], dict[str, dict[str, float]]]):
        self.registry = CollectorRegistry()
        self.gauges = gauges
        self.registry.register(self)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, ("model_name", *labels), registry=self.registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, what, labels or ("model_name",), buckets=buckets, registry=self.registry)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens made")
        self.success = counter("vllm:request_success", "Answers that came to their end", "finished_reason")
        self.rejections = counter("vllm:admission_rejections", "Requests refused because the server was full", "reason")
        self.first = histogram("vllm:time_to_first_token_seconds", "From the request to its first token", LONG)
        self.between = histogram("vllm:inter_token_latency_seconds", "From one token to the next", SHORT)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From the request to the end of its answer", LONG)
        genai = ("gen_ai_operation_name", "gen_ai_request_model", "gen_ai_system")
        self.ai_duration = histogram("gen_ai_server_request_duration_seconds", "Duration of a request", LONG, *genai)
        self.ai_first = histogram(
            "gen_ai_server_time_to_first_token_seconds", "From the request to its first token", LONG, *genai
        )
        self.ai_between = histogram(
            "gen_ai_server_time_per_output_token_seconds", "Per token after the first", SHORT, *genai
        )
        self.ai_tokens = histogram(
            "gen_ai_client_token_usage", "Tokens of a request", COUNTS, *genai, "gen_ai_token_type"
        )
        self.http = Counter(
            "http_requests",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )

    def collect(self) -> Iterable[Metric]:
        """The state of each model, for the registry."""
        found: dict[str, GaugeMetricFamily] = {}
        for model, values in self.gauges().items():
            for name, value in values.items():
                family = found.setdefault(
                    name, GaugeMetricFamily(name, name.partition(":")[2].replace("_", " "), labels=["model_name"])
                )
                family.add_metric([model], value)
        return found.values()

    def describe(self) -> Iterable[Metric]:
        return []

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, model: str, engine: str, operation: str, told: dict[str, Any]) -> None:
        """One request for text: `prompt`, `made` tokens, `first` and `whole` seconds, `reasons` why its choices ended."""
        prompt, made, first, whole = told["prompt"], told["made"], told["first"], told["whole"]
        self.prompt_tokens.labels(model).inc(prompt)
        self.generation_tokens.labels(model).inc(made)
        for reason in told["reasons"]:
            self.success.labels(model, reason).inc()
        labels = (operation, model, engine)
        self.whole.labels(model).observe(whole)
        self.ai_duration.labels(*labels).observe(whole)
        self.ai_tokens.labels(*labels, "input").observe(prompt)
        self.ai_tokens.labels(*labels, "output").observe(made)
        if first is not None:
            self.first.labels(model).observe(first)
            self.ai_first.labels(*labels).observe(first)
            if made > 1:
                self.ai_between.labels(*labels).observe((whole - first) / (made - 1))
