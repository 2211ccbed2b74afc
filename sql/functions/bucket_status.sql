-- bucket_status(): the time buckets of each counter: their width, how long they are retained (NULL: for ever), in which time zone days begin, since when they are kept now (-infinity where for
-- ever), and the view that has them: start, key, count.
create or replace function pgtally.bucket_status()
returns table (counter text, width interval, retain interval, time_zone text, since timestamptz, view text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select k.name, b.width, b.retain, b.time_zone, pgtally.kept_since(b), format('pgtally.buckets_%s_%s', b.counter_id, b.number)::regclass::text
    from pgtally.bucket b join pgtally.counter k using (counter_id) order by k.name, b.number
$$;
