-- get_counts(counter_name, keys): the stored counts of these keys, each key as it was given; a key without a row in the
-- target has no row here either.
--
-- Row-level security of the target applies, as for any other reader.
--
-- Errors: TL001 when there is no such counter; TL003 when its target was dropped; 22P02 when a key is not of the queue's type.
create or replace function pgtally.get_counts(counter_name text, keys text[]) returns table (key text, count bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_table(counter.name, 'target', counter.target_table);
    return query execute format(
        'select given.key, coalesce(t.%2$I, 0)::bigint
        from unnest($1) given(key) join %3$s t on t.%1$I = given.key::%4$s and t.%1$I = any ($1::%4$s[])',
        counter.target_key, counter.target_column, counter.target_table, pgtally.key_type(counter))
    using keys;
end
$$;
