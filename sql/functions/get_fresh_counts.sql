-- get_fresh_counts(counter_name, keys): the exact counts of these keys, each key as it was given: stored + carried + pending, however far
-- the worker is behind.
--
-- All in the snapshot of the caller's statement; so in a transaction of its own it includes what that has emitted so far.
-- Reads through the counter's pending events, so it takes longer the more there are.
--
-- Errors: TL001 when there is no such counter; TL004 in a REPEATABLE READ or SERIALIZABLE transaction so old that events which were
-- pending for it may be gone; TL005 as pending_query(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.get_fresh_counts(counter_name text, keys text[])
returns table (key text, stored bigint, carried bigint, pending bigint)
language plpgsql stable
-- The slots have no statistics, without which the planner would read them whole.
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_young_snapshot(counter);
    return query execute format(
        'select given.key, coalesce(t.count, 0)::bigint, coalesce(c.delta, 0), coalesce(p.delta, 0)
        from unnest($1, $1::%1$s[]) given(key, typed)
        left join (select %2$I as key, %3$I as count from %4$s where %2$I = any ($1::%1$s[])) t on t.key = given.typed
        left join (
            select key, pgtally.sum_delta(delta) as delta from pgtally.carry_%5$s where key = any ($1::%1$s[]) group by key
        ) c on c.key = given.typed
        left join (
            select ev_key as key, pgtally.sum_delta(ev_delta) as delta from (%6$s) e where ev_key = any ($1::%1$s[]) group by ev_key
        ) p on p.key = given.typed',
        pgtally.key_type(counter), counter.target_key, counter.target_column, counter.target_table, counter.counter_id,
        pgtally.pending_query(counter))
    using keys;
end
$$;
