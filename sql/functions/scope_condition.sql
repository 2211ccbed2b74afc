-- scope_condition(counter, scope): SQL condition for a row t of the counter's target: that its columns have these values ({"category_id": 7}).
--
-- Errors: TL003 when the target is pgtally's own or has no such column, or scope is no object of texts, numbers, booleans and nulls.
create or replace function pgtally.scope_condition(counter pgtally.counter, scope jsonb) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    condition text := 'true';
    part record;
begin
    if scope is null then
        return condition;
    elsif counter.own_target then
        raise exception 'Counter "%" keeps its counts in a table of pgtally, which has no columns to select keys by', counter.name
            using errcode = 'TL009', hint = 'Define it with a target of yours, or leave the condition out.';
    elsif jsonb_typeof(scope) <> 'object' then
        raise exception 'Counter "%": % does not say which columns have which values', counter.name, scope
            using errcode = 'TL003', hint = 'Use for example {"category_id": 7}.';
    end if;
    for part in select e.key as name, e.value from jsonb_each(scope) e loop
        if jsonb_typeof(part.value) in ('object', 'array')
            or not exists (select from pg_attribute a where a.attrelid = counter.target_table and a.attname = part.name and a.attnum > 0 and not a.attisdropped)
        then
            raise exception 'Counter "%": % has no column "%" that could be %', counter.name, counter.target_table, part.name, part.value
                using errcode = 'TL003', hint = 'Name columns of the target, each with a text, a number, true, false or null.';
        end if;
        begin
            execute format('select from %s t where t.%I = %L limit 0', counter.target_table, part.name, scope ->> part.name);
        exception when data_exception or undefined_function then
            raise exception 'Counter "%": the column %.% cannot be %', counter.name, counter.target_table, part.name, part.value
                using errcode = 'TL003', hint = 'Give a value of the column''s type.';
        end;
        condition := condition || case when part.value = 'null' then format(' and t.%I is null', part.name) else format(' and t.%I = %L', part.name, scope ->> part.name) end;
    end loop;
    return condition;
end
$$;
