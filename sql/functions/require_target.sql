-- require_target(counter_name, target, target_key, target_column): raises TL003 unless counts can be kept there.
create or replace function pgtally.require_target(counter_name text, target regclass, target_key name, target_column name)
returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    found_column record;
begin
    if (select relkind not in ('r', 'p') or relpersistence <> 'p' from pg_class where oid = target) then
        raise exception 'Counter "%": counts cannot be kept in %: it is not a permanent, logged table', counter_name, target
            using errcode = 'TL003', hint = 'Use an ordinary or partitioned table, or leave the target out to use pgtally''s own.';
    end if;
    select a.atttypid::regtype as type, a.attgenerated <> '' or a.attidentity <> '' as generated into found_column
    from pg_attribute a where a.attrelid = target and a.attname = target_column and a.attnum > 0 and not a.attisdropped;
    if not found then
        raise exception 'Counter "%": the table % has no column "%"', counter_name, target, target_column
            using errcode = 'TL003', hint = format('Add it: ALTER TABLE %s ADD COLUMN %I bigint NOT NULL DEFAULT 0.', target, target_column);
    elsif found_column.generated or found_column.type not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype) then
        raise exception 'Counter "%": the column %.% is %, not a number that can be added to', counter_name, target, target_column,
            case when found_column.generated then 'generated' else 'of type ' || found_column.type::text end
            using errcode = 'TL003', hint = 'Use a column of type bigint, or of integer, smallint or numeric.';
    end if;
    if target_key = target_column then
        raise exception 'Counter "%": the column %.% cannot hold both the key and the count', counter_name, target, target_key
            using errcode = 'TL003', hint = format('Add one for the count: ALTER TABLE %s ADD COLUMN like_count bigint NOT NULL DEFAULT 0.', target);
    end if;
    if not pgtally.is_unique_key(target, target_key) then
        raise exception 'Counter "%": %.% has no unique index, so a key could mean several rows', counter_name, target, target_key
            using errcode = 'TL003', hint = format('Add one: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%I).', target, target_key);
    end if;
end
$$;
