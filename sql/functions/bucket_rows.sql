-- bucket_rows(bucket, condition): SQL text of a query for rows of a bucket's counts: start, key, count. Several rows may be of one bucket and key: it is their sum that counts.
--
-- condition: of what r.start, r.key and r.count have to satisfy, on the bare columns, so that indexes are used. What is not kept any more is left out, be it emptied or not.
create or replace function pgtally.bucket_rows(bucket pgtally.bucket, condition text default 'true') returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format(
        'select r.start, r.key, r.count from pgtally.bucket_%1$s_%2$s r where r.start >= %3$s and (%4$s)
        union all
        select r.start, r.key, r.count from (select c.start_%2$s as start, c.key, c.count_%2$s as count from pgtally.recent_%1$s c) r
        where r.start >= %3$s and r.count <> 0 and (%4$s)',
        bucket.counter_id, bucket.number,
        format('(select pgtally.kept_since(b) from pgtally.bucket b where b.counter_id = %s and b.number = %s)', bucket.counter_id, bucket.number), condition)
$$;
