"""Accuracies of supernets' children, so that none is evaluated twice.

A migration is a record of history: it repeats the columns instead of importing today's schema.
"""

import sqlalchemy as sql
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "accuracies",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("digest", sql.String(32), nullable=False, unique=True),
        sql.Column("weights", sql.String(64), nullable=False),
        sql.Column("data", sql.String(64), nullable=False),
        sql.Column("split", sql.String(20), nullable=False),
        sql.Column("images", sql.Integer, nullable=False),
        sql.Column("calibration_images", sql.Integer, nullable=False),
        sql.Column("architecture", sql.Text, nullable=False),
        sql.Column("correct", sql.Integer, nullable=False),
        sql.CheckConstraint("correct >= 0 AND correct <= images", name="correct_of_images"),
    )
    op.create_index("ix_accuracies_look_up", "accuracies", ["weights", "data"])
