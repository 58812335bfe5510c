"""First schema: devices, workloads, provenances and measurements.

A migration is a record of history: it repeats the columns instead of importing today's schema.
"""

import sqlalchemy as sql
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Create the tables in an empty database."""
    op.create_table(
        "devices",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("name", sql.String(100), nullable=False, unique=True),
        sql.Column("description", sql.Text, nullable=False),
    )
    op.create_table(
        "workloads",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("key", sql.String(200), nullable=False, unique=True),
    )
    op.create_table(
        "provenances",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("description", sql.String(2000), nullable=False, unique=True),
        sql.Column("code_hash", sql.String(200), nullable=False),
    )
    op.create_index("ix_provenances_code_hash", "provenances", ["code_hash"])
    op.create_table(
        "measurements",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("digest", sql.String(32), nullable=False, unique=True),
        sql.Column("device_id", sql.Integer, sql.ForeignKey("devices.id"), nullable=False),
        sql.Column("subject", sql.String(20), nullable=False),
        sql.Column("workload_id", sql.Integer, sql.ForeignKey("workloads.id"), nullable=True),
        sql.Column("schedule", sql.Text, nullable=True),
        sql.Column("space", sql.String(200), nullable=True),
        sql.Column("architecture", sql.Text, nullable=True),
        sql.Column("samples_ns", sql.LargeBinary, nullable=False),
        sql.Column("error", sql.Text, nullable=True),
        sql.Column("kind", sql.String(20), nullable=False),
        sql.Column("provenance_id", sql.Integer, sql.ForeignKey("provenances.id"), nullable=False),
        sql.Column("load_average", sql.Double, nullable=False),
        sql.Column("steal_fraction", sql.Double, nullable=False),
        sql.Column("frequency_mhz", sql.Double, nullable=True),
        sql.Column("context_switches", sql.BigInteger, nullable=False),
        sql.Column("affinity", sql.Text, nullable=False),
        sql.Column("governor", sql.String(50), nullable=True),
        sql.Column("created_at_us", sql.BigInteger, nullable=False),
        sql.Column("session", sql.String(200), nullable=False),
        sql.CheckConstraint("(error IS NULL) <> (length(samples_ns) = 0)", name="samples_or_error"),
    )
    op.create_index("ix_measurements_look_up", "measurements", ["device_id", "subject", "space"])
    op.create_index("ix_measurements_workload_id", "measurements", ["workload_id"])
    op.create_index("ix_measurements_provenance_id", "measurements", ["provenance_id"])
