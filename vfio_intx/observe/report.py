"""A tracing run as the data of ``vfio-intx/trace/1``. Pure."""

from __future__ import annotations

from vfio_intx.observe.collect import Report
from vfio_intx.observe.span import Span
from vfio_intx.observe.summary import scheme_of


def to_json(report: Report) -> dict[str, object]:
    """The payload of ``trace --json`` (without its schema): times in microseconds, moments in ns (monotonic)."""
    summary = report.summary
    evidence = summary.evidence()
    return {
        "seconds": round(report.seconds, 3),
        "ended": report.ended,
        "gsi": report.target.gsi,
        "host_irq": report.target.irq,
        "interrupts": summary.interrupts,
        "injected": report.injected,
        "handled": report.handled if report.target.irq is not None else None,
        "restated": report.restated,
        "deliveries": summary.interrupts + report.anomaly_counts.get("repeated", 0),
        "per_second": round(summary.interrupts / report.seconds, 1) if report.seconds else 0.0,
        "lost_events": report.lost_events,
        "evidence": None
        if evidence is None
        else {
            "kind": evidence.kind.value,
            "text": evidence.text,
            "speaks_for": evidence.speaks_for.value if evidence.speaks_for else None,
        },
        "wakeups_per_interrupt": summary.wakeups_per_interrupt,
        "handler_to_ack_us": dict(summary.to_ack.microseconds()) or None,
        "whole_us": dict(summary.whole.microseconds()) or None,
        "stages": [
            {"stage": stage.stage.value, "us": dict(stage.us), "share": stage.share, "count": stage.count}
            for stage in summary.stages()
        ],
        "anomaly_counts": dict(report.anomaly_counts),
        "anomalies": [
            {"kind": anomaly.oddity.value, "t_ns": anomaly.time, "detail": anomaly.detail}
            for anomaly in report.anomalies
        ],
        "slowest": [span_json(span) for span in summary.slowest()],
        "without": list(report.without),
        "cost": {
            "cpu_s": round(report.cost.cpu_s, 4),
            "events": report.cost.events,
            "events_per_cpu_s": round(report.cost.events_per_cpu_s),
            "cpu_share": round(report.cost.cpu_s / report.seconds, 4) if report.seconds else 0.0,
        },
    }


def span_json(span: Span) -> dict[str, object]:
    """One interrupt: its start in ns (monotonic), and each milestone in microseconds after it."""
    start = span.start
    scheme = scheme_of(span)
    return {
        "n": span.number,
        "t_ns": start,
        "scheme": scheme.value if scheme else None,
        "source": span.source,
        "vector": span.vector,
        "us": {stage.value: (moment - start) / 1000 for stage, moment in span.milestones()},
        "oddities": sorted(oddity.value for oddity in span.oddities or ()),
    }
