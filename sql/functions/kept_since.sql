-- kept_since(bucket): since when buckets have to be kept now: for as long as they are retained, from the beginning of a slot; -infinity where they are kept for ever.
create or replace function pgtally.kept_since(bucket pgtally.bucket) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case
        when bucket.slot_span is null then '-infinity'
        else to_timestamp(((floor(extract(epoch from clock_timestamp()) / extract(epoch from bucket.slot_span)) - 4) * extract(epoch from bucket.slot_span))::double precision) end
$$;
