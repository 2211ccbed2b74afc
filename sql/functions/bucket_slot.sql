-- bucket_slot(bucket, start): SQL for the slot of the bucket's table that buckets with this start are in. start: SQL for that.
--
-- Six slots follow one another in a ring: four that are kept, the one of now, and the next. What lies beyond them, in the future, is in slot 6 until its time has come; a bucket can then be in both,
-- and counts with the sum of them. (The remainder of what was before 1970 is negative.)
create or replace function pgtally.bucket_slot(bucket pgtally.bucket, start text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case
        when bucket.slot_span is null then '0'
        else format('case when %1$s < %2$L then pg_catalog.mod(pg_catalog.mod(pg_catalog.floor(pg_catalog.date_part(''epoch'', %1$s) / %3$s)::pg_catalog.int8, 6) + 6, 6) else 6 end',
            start, bucket.kept_since + 6 * bucket.slot_span, extract(epoch from bucket.slot_span)) end
$$;
