-- rank_counts(ranking, keys, counts, missing_keys): writes what add_deltas() has stored into the ranking table beside the target, and takes out keys that have no row there.
--
-- The caller has locked the keys' rows of the target, so nobody else writes the same keys here, but for a reconciliation that inserts those it has not seen yet: that is waited for.
create or replace function pgtally.rank_counts(ranking text, keys anyarray, counts bigint[], missing_keys anyarray) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    updated bigint;
begin
    execute format('update %s r set value = u.value from unnest($1, $2) u(key, value) where r.key = u.key', ranking) using keys, counts;
    get diagnostics updated = row_count;
    if updated < cardinality(keys) then
        execute format('insert into %s as r (key, value) select u.key, u.value from unnest($1, $2) u(key, value) order by u.key on conflict (key) do update set value = excluded.value where r.value <> excluded.value', ranking)
        using keys, counts;
    end if;
    if cardinality(missing_keys) > 0 then
        execute format('delete from %s r where r.key = any ($1)', ranking) using missing_keys;
    end if;
end
$$;
