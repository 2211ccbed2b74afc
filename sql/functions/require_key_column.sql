-- require_key_column(counter_name, relation, key): the queue's key type for a key column: smallint, integer, bigint, uuid or text.
--
-- Errors: TL003 when there is no such column or its type cannot be a key.
create or replace function pgtally.require_key_column(counter_name text, relation regclass, key name) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    key_type text;
    virtual boolean;
begin
    select case a.atttypid::regtype::text when 'character varying' then 'text' else a.atttypid::regtype::text end, a.attgenerated = 'v'
    into key_type, virtual
    from pg_attribute a where a.attrelid = relation and a.attname = key and a.attnum > 0 and not a.attisdropped;
    if key_type is null then
        raise exception 'Counter "%": the table % has no column "%"', counter_name, relation, key
            using errcode = 'TL003', hint = 'Name the column that holds the key.';
    elsif key_type not in ('smallint', 'integer', 'bigint', 'uuid', 'text') then
        raise exception 'Counter "%": the column %.% is of type %, which cannot be a key', counter_name, relation, key, key_type
            using errcode = 'TL003', hint = 'Use a column of type smallint, integer, bigint, uuid, text or varchar.';
    end if;
    if virtual then
        -- PostgreSQL 18 does not compute them for the rows that a trigger sees.
        raise exception 'Counter "%": the column %.% is a virtual generated column, which cannot be a key', counter_name, relation, key
            using errcode = 'TL003', hint = 'Make it STORED, or use the column that it is computed from.';
    end if;
    return key_type;
end
$$;
