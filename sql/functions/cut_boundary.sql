-- cut_boundary(boundary, before): the boundary with everything from transaction id `before` on left for later.
--
-- What it calls finished below `before` stays finished, what it lists as in progress below `before` stays listed. The
-- result need not be a state that the database was ever in; it is a set of transactions, which is all a batch needs.
create or replace function pgtally.cut_boundary(boundary pg_snapshot, before xid8) returns pg_snapshot
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    select format('%s:%s:%s', least(pg_snapshot_xmin(boundary), before), before,
        (select string_agg(xid::text, ',' order by xid) from pg_snapshot_xip(boundary) xid where xid < before)
    )::pg_snapshot
$$;
