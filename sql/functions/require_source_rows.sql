-- require_source_rows(counter, wanted): raises TL009 unless the counter counts the rows of a source (wanted), or does not (not wanted).
create or replace function pgtally.require_source_rows(counter pgtally.counter, wanted boolean) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    source constant regclass := (
        select s.source_table from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
begin
    if wanted and source is null then
        raise exception 'Counter "%" adds up events and not rows, so there is nothing to hold its counts against', counter.name
            using errcode = 'TL009', hint = 'Its counts can be set back to 0 with reset.';
    elsif not wanted and source is not null then
        raise exception 'Counter "%" counts the rows of %, so its counts cannot be set back to 0', counter.name, source
            using errcode = 'TL009', hint = 'Delete the rows; or if counts are wrong, correct them with reconcile.';
    end if;
end
$$;
