-- ranking_table(counter): the table that has the stored count (value) of each key and its level in an index; NULL for a counter that was defined without a ranking.
--
-- The level is the count as it is up to 255, and above that its logarithm in 256 steps for each doubling: so for the keys that are counted most, whose rows are written all the time, it
-- hardly ever changes, an update writes no index entry (HOT), and the user's own column needs no index. The keys with the greatest counts are those of the highest levels (head).
create or replace function pgtally.ranking_table(counter pgtally.counter) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when counter.ranked then format('pgtally.%s_%s', case when counter.own_target then 'count' else 'rank' end, counter.counter_id) end
$$;
