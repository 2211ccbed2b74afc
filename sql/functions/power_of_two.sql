-- power_of_two(exponent): 2 to that power, for weights of decayed scores; 0 below 2^-490, and above 2^490, where only a clock that is wrong by days can lead.
--
-- A product that is too small or too large for a double (2^-1074, 2^1024) is an error, which would stop a counter. Scores are 0 or not below 1e-150 (add_scores), so their products with this are none.
create or replace function pgtally.power_of_two(exponent double precision) returns double precision
language sql immutable parallel safe
return case when exponent between -490 and 490 then power(2::double precision, exponent) else 0 end;
