-- power_of_two(exponent): 2 to that power; 0 where that is too small for a double, which power() takes for an error.
create or replace function pgtally.power_of_two(exponent double precision) returns double precision
language sql immutable parallel safe
return case when exponent < -1000 then 0 else power(2::double precision, exponent) end;
