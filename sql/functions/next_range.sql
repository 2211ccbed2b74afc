-- next_range(counter, after_key, max_keys): the last key of a range of about max_keys keys that begins after after_key (NULL: with the
-- first); NULL for all the rest.
--
-- Ranges keep snapshots short and need no sort of a whole table. max_keys keys of the target; or where that may have rows for few
-- of the source's keys (on_missing is not drop), max_keys keys of the source, if that comes first: each is found through the
-- index by the one before. A source whose key has no index would have to be read for each range, so it is one range.
create or replace function pgtally.next_range(counter pgtally.counter, after_key text, max_keys integer) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off set enable_seqscan = off set jit = off as $$
declare
    source constant pgtally.source := (select s from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
    space constant record := pgtally.key_space(counter);
    -- The source's own collation may be another one, and the next key in that order lie before after_key in this.
    collation_clause constant text := case when space.key_type = 'text' then format(' collate %s', space.key_collation) else '' end;
    last_key text;
    source_last_key text;
begin
    if max_keys < 1 then
        raise exception 'max_keys is %, and a range needs at least one', max_keys
            using errcode = 'TL003', hint = 'Use 1 or more, or NULL for no limit.';
    end if;
    if max_keys is null or source.queue_id is not null and not pgtally.is_indexed(source.source_table, source.source_key, space.key_collation) then
        return null;
    end if;
    -- t.key and not key, which would be the text.
    execute format('select t.%1$I::text from %2$s t where %3$s order by t.%1$I offset $1 limit 1', counter.target_key, counter.target_table,
        pgtally.key_filter(counter.target_key, space.key_type, space.key_collation, null, after_key, null))
    into last_key using max_keys - 1;
    if source.queue_id is null or counter.on_missing = 'drop' then
        return last_key;
    end if;

    execute format(
        'with recursive found(key, number) as (
            (select %1$I, 1 from %2$s where %3$s order by %1$I%5$s limit 1)
            union all
            select (select s.%1$I from %2$s s where s.%1$I > found.key%5$s and %4$s order by s.%1$I%5$s limit 1), found.number + 1
            from found where found.key is not null and found.number < $1
        )
        select key::text from found where number = $1',
        source.source_key, source.source_table,
        pgtally.key_filter(source.source_key, space.key_type, space.key_collation, null, after_key, last_key)
            || format(' and %I is not null', source.source_key),
        pgtally.key_filter(source.source_key, space.key_type, space.key_collation, null, null, last_key), collation_clause)
    into source_last_key using max_keys;
    return coalesce(source_last_key, last_key);
end
$$;
