-- correct_ranking(counter, keys, after_key, last_key): makes the rows of a ranking beside the target what the target says, for these keys or this range of keys; takes out those of keys that have no row there.
--
-- The caller has locked the consumer. But wait_for_carried() adds without that, having locked the key's row of the target: so what looks wrong is locked first, which waits for it, and looked at again.
create or replace function pgtally.correct_ranking(counter pgtally.counter, keys text[], after_key text, last_key text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    space constant record := pgtally.key_space(counter);
    ranking constant text := pgtally.ranking_table(counter);
    of_target constant text := format('(select t.%1$I as key, coalesce(t.%2$I, 0) as value from %3$s t)', counter.target_key, counter.target_column, counter.target_table);
    wrong text[];
begin
    execute format('select array_agg(r.key::text) from (select key, value from %1$s where %3$s) r left join %2$s t on t.key = r.key where r.value is distinct from t.value', ranking, of_target,
        pgtally.key_filter('key', space.key_type, space.key_collation, keys, after_key, last_key))
    into wrong;
    if wrong is null then
        return;
    end if;
    execute format('select from %1$s where key = any ($1::%2$s[]) order by key for update', ranking, pgtally.key_type(counter)) using wrong;
    execute format('update %1$s r set value = t.value from %2$s t where t.key = r.key and t.value <> r.value and r.key = any ($1::%3$s[])', ranking, of_target, pgtally.key_type(counter)) using wrong;
    execute format('delete from %1$s r where r.key = any ($1::%3$s[]) and not exists (select from %2$s t where t.key = r.key)', ranking, of_target, pgtally.key_type(counter)) using wrong;
end
$$;
