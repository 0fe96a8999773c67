"""The audit trail: its table by months, and the function that writes an entry for each change of a row."""

from alembic import op

revision = "hk_0005"
down_revision = "hk_0004"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE hk_audit (
    id bigint NOT NULL DEFAULT nextval('hk_audit_id'),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    updated_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    incarnation bigint NOT NULL DEFAULT 0,
    resource text NOT NULL,
    record_id text NOT NULL,
    record_version bigint NOT NULL,
    operation text NOT NULL,
    caller text NOT NULL,
    user_id text,
    request_id text,
    changes jsonb NOT NULL,
    CONSTRAINT hk_audit_pkey PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at)
"""

# The arguments of a trigger: resource, column of the id, hidden columns, columns that are left out, and the column of a
# soft delete. It runs with the rights of its owner, so that no role needs any on the trail; its search path is fixed.
# Nothing in it depends on a setting of the session but `hk.who`, which says who asks.
FUNCTION = """
CREATE FUNCTION hk_audit_row() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, {schema}, pg_temp SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' AS $body$
DECLARE
    said text := current_setting('hk.who', true);
    who jsonb;
    before jsonb;
    after jsonb;
    known jsonb;
    operation text;
    changed jsonb;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = TG_TABLE_NAME || ' is audited: delete its rows, so that each has an entry';
    END IF;
    IF TG_OP <> 'INSERT' THEN
        before := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after := to_jsonb(NEW);
    END IF;
    known := COALESCE(after, before);
    IF TG_ARGV[4] <> '' THEN
        IF before ->> TG_ARGV[4] IS NOT NULL THEN
            before := NULL;
        END IF;
        IF after ->> TG_ARGV[4] IS NOT NULL THEN
            after := NULL;
        END IF;
    END IF;
    IF before IS NULL AND after IS NULL THEN
        RETURN NULL;
    END IF;
    operation := CASE WHEN after IS NULL THEN 'delete' WHEN before IS NOT NULL THEN 'update'
        WHEN TG_OP = 'INSERT' THEN 'create' ELSE 'undelete' END;
    IF before IS NOT NULL AND after IS NOT NULL THEN
        SELECT jsonb_object_agg(key, CASE WHEN key = ANY (TG_ARGV[2]::text[]) THEN '["***", "***"]'::jsonb
            ELSE jsonb_build_array(before -> key, value) END) INTO changed
        FROM jsonb_each(after) WHERE value IS DISTINCT FROM before -> key AND key <> ALL (TG_ARGV[3]::text[]);
    ELSE
        SELECT jsonb_object_agg(key, CASE WHEN key = ANY (TG_ARGV[2]::text[]) THEN '["***", "***"]'::jsonb
            WHEN before IS NULL THEN jsonb_build_array(NULL, value) ELSE jsonb_build_array(value, NULL) END)
        INTO changed
        FROM jsonb_each(COALESCE(after, before)) WHERE value <> 'null' AND key <> ALL (TG_ARGV[3]::text[]);
    END IF;
    IF said <> '' THEN
        who := said::jsonb;
    END IF;
    INSERT INTO hk_audit (resource, record_id, record_version, operation, caller, user_id, request_id, changes)
    VALUES (TG_ARGV[0], known ->> TG_ARGV[1],
        COALESCE((known ->> 'version')::bigint, 1) + CASE WHEN TG_OP = 'DELETE' THEN 1 ELSE 0 END,
        operation, COALESCE(who ->> 'caller', 'sql:' || session_user), who ->> 'user_id', who ->> 'request_id',
        COALESCE(changed, '{{}}'));
    RETURN NULL;
END
$body$
"""


def upgrade() -> None:
    """Create the table with its months, and the function; a service's own revision makes the triggers."""
    op.execute("CREATE SEQUENCE hk_audit_id")
    op.execute(TABLE)
    op.execute("ALTER SEQUENCE hk_audit_id OWNED BY hk_audit.id")
    op.execute("CREATE INDEX hk_audit_record ON hk_audit (resource, record_id, id)")
    op.execute("CREATE INDEX hk_audit_user ON hk_audit (user_id, id) WHERE user_id IS NOT NULL")
    # For what no month is ready for; housekeeping makes months ahead, and moves rows out of here.
    op.execute("CREATE TABLE hk_audit_rest PARTITION OF hk_audit DEFAULT")
    # The function's text has the name of the schema in it, so that its search path is no one else's.
    op.execute(
        "DO $do$ BEGIN EXECUTE replace($sql$"
        + FUNCTION.format(schema="@schema@")
        + "$sql$, '@schema@', quote_ident(current_schema())); END $do$"
    )
    op.execute("REVOKE EXECUTE ON FUNCTION hk_audit_row() FROM PUBLIC")


def downgrade() -> None:
    """Drop the trail with every entry, and the triggers that write it."""
    op.execute("DROP FUNCTION hk_audit_row() CASCADE")
    op.execute("DROP TABLE hk_audit")
