-- kept_since(bucket): since when buckets are kept now: for as long as they are retained, from the beginning of a slot; -infinity where they are kept for ever. Only ever moves on, also where the clock does not.
--
-- What starts earlier is not read any more, whether expire_buckets() has emptied it or not. TRUNCATE does not respect older snapshots, so it is the clock that tells, and not a row that a snapshot may show as it was: nothing
-- is emptied before that. Whoever has read asks once more, and what is kept then had not been emptied.
create or replace function pgtally.kept_since(bucket pgtally.bucket) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case
        when bucket.slot_span is null then '-infinity'
        else greatest(
            bucket.kept_since,
            to_timestamp(((floor(extract(epoch from clock_timestamp()) / extract(epoch from bucket.slot_span)) - 4) * extract(epoch from bucket.slot_span))::double precision)) end
$$;
