-- source_expression(source_table, expression, is_condition): the expression as the server understands it, for a trigger.
--
-- It may use the row's own columns and immutable functions only, or the count would depend on when it was taken; the
-- server itself checks that, as for an index. pg_get_expr writes the result with every constant typed and every name
-- outside pg_catalog qualified, so it means the same in every session, and two ways of writing it compare equal.
--
-- It runs with the rights of whoever creates the counter, in triggers that others fire. So he must be allowed to call each function in it (the cursor checks that); and no function may belong to a
-- role that has not his rights anyway, as its owner could put something else in its place later.
--
-- Errors: TL003 when it cannot be used; 42501 when the caller may not call a function in it.
create or replace function pgtally.source_expression(source_table regclass, expression text, is_condition boolean) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    probe constant text := format('pgtally.probe_%s', pg_backend_pid());
    single refcursor;
    canonical text;
    result_type regtype;
    foreign_function text;
    message text;
begin
    if expression is null then
        return null;
    end if;
    begin
        -- A cursor takes one query and no more, and runs nothing yet. The line break ends a comment.
        open single for execute format(E'select (%s\n) from %s limit 0', expression, source_table);
        close single;
        execute format('create table %s (like %s including generated)', probe, source_table);
        if is_condition then
            execute format(E'create index on %s ((1)) where (%s\n)', probe, expression);
        else
            execute format(E'create index on %s ((%s\n))', probe, expression);
        end if;
        select case when is_condition then pg_get_expr(indpred, indrelid) else pg_get_indexdef(indexrelid, 1, false) end, atttypid
        into canonical, result_type
        from pg_index join pg_attribute on attrelid = indexrelid and attnum = 1
        where indrelid = probe::regclass;
        if (select indnatts from pg_index where indrelid = probe::regclass) > 1 then
            raise exception 'it is more than one';
        end if;
        select p.oid::regprocedure::text into foreign_function
        from pg_index i
        join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
        left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
        join pg_proc p on p.oid = case when d.refclassid = 'pg_proc'::regclass then d.refobjid else o.oprcode end
        where i.indrelid = probe::regclass and not pg_has_role(p.proowner, current_user, 'usage') limit 1;
        if found then
            raise exception 'the function % belongs to another role, which could change what it does', foreign_function;
        end if;
        raise exception using errcode = 'TL000';
    exception
        when sqlstate 'TL000' then null; -- takes the probe away again
        -- These are not about the expression.
        when lock_not_available or deadlock_detected or query_canceled or insufficient_privilege then raise;
        when others then message := sqlerrm;
    end;
    if message is null and not is_condition and result_type not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype) then
        message := format('it is of type %s, and only smallint, integer and bigint add up exactly', result_type);
    end if;
    if message is not null then
        raise exception 'The expression "%" cannot be used for the rows of %: %', expression, source_table, message
            using errcode = 'TL003', hint = case when is_condition
                then 'Give a condition on the columns of one row, such as kind = ''like''.'
                else 'Give a whole number computed from the columns of one row, such as weight.' end;
    end if;
    return canonical;
end
$$;
