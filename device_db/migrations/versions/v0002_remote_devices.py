"""Devices may be remote: their description says how they are reached, which older ones are not."""

import contextlib
import json

import sqlalchemy as sql
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_DEVICES = sql.table("devices", sql.column("id", sql.Integer), sql.column("description", sql.Text))


def upgrade() -> None:
    """Add `remote` to the description of every device; damaged ones stay as they are."""
    connection = op.get_bind()
    for number, text in connection.execute(sql.select(_DEVICES)).all():
        with contextlib.suppress(ValueError, TypeError):
            description = {"remote": None, **json.loads(text)}
            changed = json.dumps(description, sort_keys=True, separators=(",", ":"))
            connection.execute(
                sql.update(_DEVICES).where(_DEVICES.c.id == number).values(description=changed)
            )
