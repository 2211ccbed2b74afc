-- sample_keys(counter_name, sample_size): that many keys of the target, taken at random; fewer where it has no more.
--
-- Reads a few random pages and not the whole table, so keys that lie together are rather taken together.
--
-- Errors: TL001 when there is no such counter; TL003 when sample_size is below 1.
create or replace function pgtally.sample_keys(counter_name text, sample_size integer) returns text[]
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    row_count constant bigint := pgtally.estimated_keys(counter);
    sampled text[];
begin
    if sample_size < 1 then
        raise exception 'The sample is of % keys, and needs at least one', sample_size
            using errcode = 'TL003', hint = 'Use 1 or more.';
    end if;
    execute format(
        'select array(select %1$I::text from %2$s tablesample system (%3$s) where %1$I is not null order by random() limit $1)',
        counter.target_key, counter.target_table,
        -- A few times as many as needed, since the statistics may be old.
        coalesce(least(100, 100.0 * 5 * (sample_size + 200) / row_count), 100))
    into sampled using sample_size;
    return sampled;
end
$$;
