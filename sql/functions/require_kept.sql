-- require_kept(counter, bucket, from_time): raises unless the bucket's counts are kept since from_time. To be called (again) when they have been read: see kept_since().
--
-- Errors: TL009 when they are not, or bucket is NULL.
create or replace function pgtally.require_kept(counter pgtally.counter, bucket pgtally.bucket, from_time timestamptz) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if bucket.width is null or pgtally.kept_since(bucket) > from_time then
        raise exception 'Counter "%" has no buckets that are kept since %', counter.name, from_time
            using errcode = 'TL009', hint = 'Ask for a later time, or define the counter with buckets that are retained for longer; bucket_status() has those that there are.';
    end if;
end
$$;
