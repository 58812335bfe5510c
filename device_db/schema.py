"""The tables of the store as this version of bignas reads and writes them.

Migrations (migrations/versions/) bring an older file to this state; a test compares the two.

- Workloads and provenances repeat in thousands of measurements: each distinct one is stored once.
- `samples_ns` is a blob of little-endian float64 values: compact, and exact to the last bit.
- `created_at_us` counts microseconds since 1970-01-01 UTC: exact, and orders as a number.
- `digest` names a measurement by its content, so that adding one twice, say by importing the same
  file again, changes nothing.
"""

import sqlalchemy as sql

__all__ = [
    "ACCURACIES",
    "DEVICES",
    "MEASUREMENTS",
    "METADATA",
    "PROVENANCES",
    "SCHEMA_REVISIONS",
    "VERSION_TABLE",
    "WORKLOADS",
]

VERSION_TABLE = "bignas_schema_version"
SCHEMA_REVISIONS = ("0001", "0002", "0003")  # of migrations/versions; the last is the current one

METADATA = sql.MetaData()

DEVICES = sql.Table(
    "devices",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.String(100), nullable=False, unique=True),
    sql.Column("description", sql.Text, nullable=False),  # JSON of records.Device
)

WORKLOADS = sql.Table(
    "workloads",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("key", sql.String(200), nullable=False, unique=True),
)

PROVENANCES = sql.Table(
    "provenances",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("description", sql.String(2000), nullable=False, unique=True),  # canonical JSON
    sql.Column("code_hash", sql.String(200), nullable=False, index=True),
)

MEASUREMENTS = sql.Table(
    "measurements",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("digest", sql.String(32), nullable=False, unique=True),
    sql.Column("device_id", sql.Integer, sql.ForeignKey("devices.id"), nullable=False),
    sql.Column("subject", sql.String(20), nullable=False),
    sql.Column(
        "workload_id", sql.Integer, sql.ForeignKey("workloads.id"), nullable=True, index=True
    ),
    sql.Column("schedule", sql.Text, nullable=True),
    sql.Column("space", sql.String(200), nullable=True),
    sql.Column("architecture", sql.Text, nullable=True),
    sql.Column("samples_ns", sql.LargeBinary, nullable=False),
    sql.Column("error", sql.Text, nullable=True),
    sql.Column("kind", sql.String(20), nullable=False),
    sql.Column(
        "provenance_id", sql.Integer, sql.ForeignKey("provenances.id"), nullable=False, index=True
    ),
    sql.Column("load_average", sql.Double, nullable=False),
    sql.Column("steal_fraction", sql.Double, nullable=False),
    sql.Column("frequency_mhz", sql.Double, nullable=True),
    sql.Column("context_switches", sql.BigInteger, nullable=False),
    sql.Column("affinity", sql.Text, nullable=False),  # processor numbers, separated by commas
    sql.Column("governor", sql.String(50), nullable=True),
    sql.Column("created_at_us", sql.BigInteger, nullable=False),
    sql.Column("session", sql.String(200), nullable=False),
    sql.CheckConstraint("(error IS NULL) <> (length(samples_ns) = 0)", name="samples_or_error"),
    sql.Index("ix_measurements_look_up", "device_id", "subject", "space"),
)

ACCURACIES = sql.Table(
    "accuracies",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("digest", sql.String(32), nullable=False, unique=True),  # of all but `correct`
    sql.Column("weights", sql.String(64), nullable=False),
    sql.Column("data", sql.String(64), nullable=False),
    sql.Column("split", sql.String(20), nullable=False),
    sql.Column("images", sql.Integer, nullable=False),
    sql.Column("calibration_images", sql.Integer, nullable=False),
    sql.Column("architecture", sql.Text, nullable=False),
    sql.Column("correct", sql.Integer, nullable=False),
    sql.CheckConstraint("correct >= 0 AND correct <= images", name="correct_of_images"),
    sql.Index("ix_accuracies_look_up", "weights", "data"),
)
