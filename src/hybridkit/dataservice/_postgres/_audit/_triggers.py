"""The triggers that write the audit trail: what the declarations want, what a database has, and the SQL in between.

A service's own revision makes them, so that people see them before they are there. A service without revisions has
hybridkit make them at its start, as its tables are somebody else's matter.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alembic.operations.ops import ExecuteSQLOp, MigrateOperation
from sqlalchemy import Connection, text

from hybridkit.dataservice._postgres._json_printing import literal
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.resources._audit import audited_fields

if TYPE_CHECKING:
    from hybridkit.dataservice._postgres._columns import RecordColumns
    from hybridkit.resources._resource import AnyResource

ROW_TRIGGER: Final = "hk_audit"
TRUNCATE_TRIGGER: Final = "hk_audit_truncate"

_FOUND: Final = text(
    "SELECT source, tgname, tgargs, tgenabled <> 'D' FROM unnest(CAST(:sources AS text[])) AS source"
    " JOIN pg_trigger ON tgrelid = to_regclass(source) WHERE tgname IN (:row, :truncate) AND NOT tgisinternal"
)
_TABLES: Final = text(
    "SELECT source FROM unnest(CAST(:sources AS text[])) AS source WHERE to_regclass(source) IS NOT NULL"
)

type FoundTriggers = Mapping[str, tuple[bytes, bool]]
"""The triggers of a table: by name the arguments, and whether it is turned on."""


@dataclass(frozen=True, slots=True)
class AuditTrigger:
    """The triggers of one table.

    Attributes:
        source: the table's name in SQL.
        arguments: those of the function: resource, column of the id, hidden columns, columns that are left out, and the
            column of a soft delete. None for a table whose resource isn't audited.
    """

    source: str
    arguments: tuple[str, ...] | None

    @classmethod
    def of(cls, table: ResourceTable) -> "AuditTrigger":
        """Return what a resource's declaration wants."""
        resource = table.resource
        if not resource.audited:
            return cls(table.source, None)
        kept = {table[name].name for name in audited_fields(resource)}
        others = [column.name for column in table.table.columns if column.name not in kept]
        arguments = (
            resource.name,
            table["id"].name,
            _array(table[name].name for name in resource.audit_hide),
            _array(others),
            table["deleted_at"].name if resource.soft_delete else "",
        )
        return cls(table.source, arguments)

    def differs(self, found: FoundTriggers) -> bool:
        """Return whether a table has other triggers than these, or none, or has them turned off."""
        if self.arguments is None:
            return bool(found)
        wanted = b"".join(argument.encode() + b"\0" for argument in self.arguments)
        return found != {ROW_TRIGGER: (wanted, True), TRUNCATE_TRIGGER: (b"", True)}

    @property
    def removal(self) -> Sequence[str]:
        """The statements that drop the triggers."""
        return [f"DROP TRIGGER IF EXISTS {name} ON {self.source}" for name in (ROW_TRIGGER, TRUNCATE_TRIGGER)]

    @property
    def installation(self) -> Sequence[str]:
        """The statements that create the triggers."""
        if self.arguments is None:
            return []
        given = ", ".join(map(literal, self.arguments))
        on_row = f"AFTER INSERT OR UPDATE OR DELETE ON {self.source} FOR EACH ROW"
        on_truncate = f"BEFORE TRUNCATE ON {self.source} FOR EACH STATEMENT"
        return [
            f"CREATE TRIGGER {ROW_TRIGGER} {on_row} EXECUTE FUNCTION hk_audit_row({given})",
            f"CREATE TRIGGER {TRUNCATE_TRIGGER} {on_truncate} EXECUTE FUNCTION hk_audit_row()",
        ]


def triggers_of(tables: "Mapping[AnyResource, type[RecordColumns]]") -> list[AuditTrigger]:
    """Return the triggers that declarations want, those of resources that aren't audited too."""
    return [AuditTrigger.of(ResourceTable(resource, mapped)) for resource, mapped in tables.items()]


def missing_triggers(connection: Connection, triggers: Sequence[AuditTrigger]) -> Sequence[str]:
    """Return the audited tables whose triggers are not those that their declarations want."""
    found = _found(connection, triggers)
    return [each.source for each in triggers if each.arguments and each.differs(found[each.source])]


def unaudited_reason(tables: Sequence[str]) -> str:
    """Return the message about audited tables without their triggers."""
    return (
        f"{', '.join(tables)}: declared with audited=True, and the triggers for that are missing, turned off or of"
        " another declaration; write them with `hybridkit revision`, and run `hybridkit migrate`"
    )


def differing_tables(connection: Connection, triggers: Sequence[AuditTrigger]) -> Sequence[str]:
    """Return the tables that have other triggers than their declarations want; one that isn't there is left out."""
    return [trigger.source for trigger in _differing(connection, triggers)]


def install(connection: Connection, triggers: Sequence[AuditTrigger]) -> None:
    """Give tables the triggers that their declarations want; a table that isn't there yet is left out."""
    for trigger in _differing(connection, triggers):
        for statement in (*trigger.removal, *trigger.installation):
            connection.exec_driver_sql(statement)


def _differing(connection: Connection, triggers: Sequence[AuditTrigger]) -> Sequence[AuditTrigger]:
    there = set(connection.execute(_TABLES, {"sources": [each.source for each in triggers]}).scalars())
    found = _found(connection, triggers)
    return [each for each in triggers if each.source in there and each.differs(found[each.source])]


def add_trigger_changes(
    connection: Connection,
    triggers: Sequence[AuditTrigger],
    upgrade: list[MigrateOperation],
    downgrade: list[MigrateOperation],
) -> None:
    """Add the statements that lead to the declared triggers to the operations of a revision."""
    found = _found(connection, triggers)
    for trigger in triggers:
        present = found[trigger.source]
        if not trigger.differs(present):
            continue
        removal: Sequence[str] = trigger.removal if present else ()
        upgrade += [ExecuteSQLOp(statement) for statement in (*removal, *trigger.installation)]
        # Before anything else, as the table or a column of theirs may be what the rest takes away.
        downgrade[:0] = [ExecuteSQLOp(statement) for statement in trigger.removal]


def _found(
    connection: Connection, triggers: Sequence[AuditTrigger]
) -> dict[str, dict[str, tuple[bytes, bool]]]:
    found: dict[str, dict[str, tuple[bytes, bool]]] = {each.source: {} for each in triggers}
    if triggers:
        names = {"sources": list(found), "row": ROW_TRIGGER, "truncate": TRUNCATE_TRIGGER}
        for source, name, arguments, is_on in connection.execute(_FOUND, names):
            found[source][name] = (bytes(arguments), is_on)
    return found


def _array(names: Iterable[str]) -> str:
    """Write an array of names as PostgreSQL reads it."""
    escaped = [name.replace("\\", "\\\\").replace('"', '\\"') for name in sorted(names)]
    return "{" + ",".join(f'"{name}"' for name in escaped) + "}"
