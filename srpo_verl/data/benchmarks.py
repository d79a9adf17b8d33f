"""The five benchmarks of the paper: where their files lie, how many rows they have, and their checksums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SPLITS = ("train", "test")

WHERE_TO_GET = (
    "The split files are published in the repository lasgroup/SDPO (Apache-2.0), directory datasets, at commit "
    "0e6d510:\n"
    "  git clone https://github.com/lasgroup/SDPO && git -C SDPO checkout 0e6d510\n"
    "then --source SDPO/datasets"
)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as on the command line.
        folder: of its train.json and test.json, in the layout of the published repository.
        data_source: what the rows carry in veRL: the verifier's name, then the benchmark's, since veRL averages
            validation metrics by this column.
        dataset, kind: what the published rows carry in these fields.
        rows: published number of rows per split.
        sha256: of the published file per split; a split that is missing here has no checksum on record.
    """

    name: str
    folder: str
    data_source: str
    dataset: str
    kind: str
    rows: Mapping[str, int]
    sha256: Mapping[str, str]


def _science(name: str, folder: str, *, train: tuple[int, str], test: tuple[int, str]) -> Benchmark:
    return Benchmark(
        name=name,
        folder=f"sciknoweval/{folder}",
        data_source=f"sciknoweval/{name}",
        dataset="sciknoweval",
        kind="mcq",
        rows=MappingProxyType({"train": train[0], "test": test[0]}),
        sha256=MappingProxyType({"train": train[1], "test": test[1]}),
    )


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        benchmark.name: benchmark
        for benchmark in (
            _science(
                "chemistry",
                "chemistry",
                train=(1890, "dc841dc92a16a6af3944336ecd887e80907bc9244f2bd51cd2e3869959a84029"),
                test=(210, "772adb9f2bdb1bbc2a542f350b55a1b23091fa98e793f5e24c5dba410ce299bf"),
            ),
            _science(
                "physics",
                "physics",
                train=(720, "3c16e829ceb9c580a58b6cb46fe841d5c5d05608f89b738b5c4eadf90cd78bc7"),
                test=(80, "fde88cd10e4192115d550000a8b5b8b714aa8a2651abba499b1f8b8e6f72c1d3"),
            ),
            _science(
                "biology",
                "biology",
                train=(450, "7ffbfe4a85c7386e2ca78abd3de82c84d339ecbf0beb9bff93f3e599ac6298f2"),
                test=(50, "0ffe8df8f33154ca6af90c75b278f8602d75376db79e295e16a29fc9a5da325a"),
            ),
            _science(
                "materials",
                "material",
                train=(841, "7da3afdc3194ae575e4e28f331fbc5f402dee7f2446f8294f15f619c509e111f"),
                test=(94, "2b3d7e3bcebda39ba47856ea5aae5ebcd0b3ba43b1e750cd4b02e40056b079cf"),
            ),
            Benchmark(
                name="tooluse",
                folder="tooluse",
                data_source="tooluse",
                dataset="tooluse",
                kind="tooluse",
                rows=MappingProxyType({"train": 4046, "test": 68}),
                # No checksum of the training file is on record: it is not in every copy of the repository.
                sha256=MappingProxyType({"test": "947dbf5d93a79448dbf41f00c6701402e5f2c8324936e89ed5623c553675e438"}),
            ),
        )
    }
)
