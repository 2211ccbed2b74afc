-- ranking_table(counter): the table that has the stored count (value) of each key and its level in an index; NULL for a counter that was defined without a ranking.
--
-- The level is the logarithm of the count: one step for each doubling up to 255, 256 steps above that. So it seldom changes: of the many keys with few likes only where the count doubles, and of the few with very many, whose
-- rows are written all the time, where it has grown by a quarter of a percent. While it does not, an update writes no index entry (HOT), and the user's own column needs no index. The keys with the greatest counts are those of the highest levels,
-- each sorted (head): the finer steps are for these, as many keys may have counts of one size.
create or replace function pgtally.ranking_table(counter pgtally.counter) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when counter.ranked then format('pgtally.%s_%s', case when counter.own_target then 'count' else 'rank' end, counter.counter_id) end
$$;
