"""Delivering what a search has chosen: bundles, verified and measured; the proof on test images."""

import dataclasses

import numpy as np

from bignas.compile.bundle import Bundle, record_measured
from bignas.compile.manifest import Latency
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError, VerificationError
from bignas.latency.bench import bench_bundle
from bignas.latency.remote_bundle import BundleRunner, verify_on
from bignas.search.context import SearchContext, SearchProgress
from bignas.search.deliver import deliver_child
from bignas.search.requirements import Site
from bignas.search.resources import delivered
from bignas.search.result import BUNDLE, Candidate, LatencyAt
from bignas.supernet.architecture import Architecture
from bignas.supernet.data import preprocess
from bignas.supernet.evaluate import extract_calibrated, predict

__all__ = ["Delivery"]

BUNDLES = "bundles"  # those for further devices


class Delivery:
    """Makes bundles of what a search has chosen."""

    def __init__(self, context: SearchContext) -> None:
        self._context = context

    def deliver(self, candidate: Candidate) -> tuple[dict[str, Bundle], Candidate]:
        """Write and measure a bundle for each device; also the candidate as measured then."""
        bundles: dict[str, Bundle] = {}
        latencies: list[LatencyAt] = []
        for site, latency in zip(self._context.sites, candidate.latencies, strict=True):
            bundle, measured = self._deliver_at(site, candidate.architecture)
            bundles[site.device.name] = bundle
            latencies.append(dataclasses.replace(latency, measured_ms=measured.latency_ms))
        return bundles, dataclasses.replace(candidate, latencies=tuple(latencies))

    def _deliver_at(self, site: Site, architecture: Architecture) -> tuple[Bundle, Latency]:
        context = self._context
        bundle = deliver_child(
            context.network, context.checkpoint, architecture, context.data, site.device,
            context.store, site.cache, context.out / self.place(site), site.predictor,
        )  # fmt: skip
        verification = verify_on(bundle, site.device)
        if not verification.ok:
            raise VerificationError(
                f"the binary differs from its ONNX model by {verification.max_abs_error:.2g}"
            )
        measured = bench_bundle(bundle, device=site.device)
        return record_measured(bundle, measured), measured

    def place(self, site: Site) -> str:
        """Where the bundle for a site goes, in the folder of the search."""
        return BUNDLE if site is self._context.sites[0] else f"{BUNDLES}/{site.device.name}"

    def are_small_enough(self, bundles: dict[str, Bundle]) -> bool:
        """Whether the bundles keep the limits of resources, as their manifests tell."""
        limits = self._context.config.limits.given()
        return all(
            used <= limits.get(name, used)
            for bundle in bundles.values()
            for name, used in delivered(bundle.manifest).items()
        )

    def prove(
        self, bundle: Bundle, device: Device, architecture: Architecture
    ) -> tuple[float, float]:
        """Run the binary on the test images: its accuracy, and its agreement with the child."""
        context, data = self._context, self._context.data
        test = data.test
        context.report(SearchProgress("test", 0, len(test), 0.0, ""))
        child = extract_calibrated(context.network, architecture, data)
        expected = predict(child, test.images, data.mean, data.std).argmax(axis=1)
        size = architecture.resolution
        runner = BundleRunner(bundle, device)
        if runner.input_floats != context.space.in_channels * size * size:
            raise MeasurementError("the binary's input does not fit the architecture")
        classes = []
        for start in range(0, len(test), runner.batch):
            images = test.images[start : start + runner.batch]
            inputs = preprocess(images, size, data.mean, data.std)
            classes.append(runner.run(inputs.numpy()).argmax(axis=1))
        found = np.concatenate(classes)
        return float(np.mean(found == test.labels)), float(np.mean(found == expected))
