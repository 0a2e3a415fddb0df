-- Everything that the catalogs say of the relations and functions named, in one schema: one row for each part of each of
-- them, with its definition as text. The search path has to be that schema, so that its own names are written without it.

WITH ours AS (
    SELECT pg_class.* FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %(schema)s AND relname = ANY (%(relations)s)
)
SELECT relname::text, relkind_words.text,
       concat_ws(' ',
           CASE relpersistence WHEN 'p' THEN NULL WHEN 'u' THEN 'unlogged' ELSE 'temporary' END,
           (SELECT 'using ' || amname FROM pg_am WHERE pg_am.oid = relam AND amname <> 'heap'),
           CASE WHEN relispartition THEN 'a partition' END,
           CASE WHEN NOT relhasindex AND EXISTS (SELECT FROM pg_index WHERE indrelid = ours.oid) THEN 'indexes ignored' END,
           CASE WHEN NOT relhastriggers AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = ours.oid)
               THEN 'triggers ignored' END,
           CASE WHEN relchecks <> (SELECT count(*) FROM pg_constraint WHERE conrelid = ours.oid AND contype = 'c')
               THEN 'checks ignored' END,
           CASE WHEN relrowsecurity THEN 'with row security' END,
           CASE WHEN relforcerowsecurity THEN 'with forced row security' END,
           (SELECT 'with ' || string_agg(option, ', ' ORDER BY option) FROM unnest(reloptions) AS option),
           CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(ours.oid, true) END)
FROM ours,
     LATERAL (SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'p' THEN 'partitioned table'
         WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'relation ' || relkind::text END) AS relkind_words (text)

UNION ALL
SELECT relname::text, 'column ' || attname,
       concat_ws(' ',
           row_number() OVER (PARTITION BY attrelid ORDER BY attnum),
           format_type(atttypid, atttypmod),
           CASE WHEN attnotnull THEN 'not null' END,
           (SELECT 'collate ' || pg_namespace.nspname || '.' || collname
            FROM pg_collation JOIN pg_namespace ON pg_namespace.oid = collnamespace WHERE pg_collation.oid = attcollation),
           (SELECT 'default ' || pg_get_expr(adbin, adrelid, true) FROM pg_attrdef
            WHERE adrelid = attrelid AND adnum = attnum),
           CASE WHEN attidentity <> '' THEN 'identity' END,
           CASE WHEN attgenerated <> '' THEN 'generated' END)
FROM ours JOIN pg_attribute ON attrelid = ours.oid WHERE attnum > 0 AND NOT attisdropped

UNION ALL
SELECT relname::text, 'constraint ' || conname,
       concat_ws(' ', pg_get_constraintdef(pg_constraint.oid, true), CASE WHEN NOT convalidated THEN 'unvalidated' END)
FROM ours JOIN pg_constraint ON conrelid = ours.oid WHERE contype <> 'n'

UNION ALL
SELECT relname::text, 'foreign key ' || conname || ' of ' || conrelid::regclass, pg_get_constraintdef(pg_constraint.oid, true)
FROM ours JOIN pg_constraint ON confrelid = ours.oid AND conrelid <> ours.oid

UNION ALL
SELECT ours.relname::text, 'index ' || named.relname,
       concat_ws(' ', pg_get_indexdef(indexrelid, 0, true),
           CASE WHEN NOT (indisvalid AND indisready AND indislive) THEN 'invalid' END,
           CASE WHEN NOT indimmediate THEN 'deferrable' END)
FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class AS named ON named.oid = indexrelid

UNION ALL
SELECT relname::text, 'trigger ' || tgname,
       concat_ws(' ', pg_get_triggerdef(pg_trigger.oid, true),
           CASE tgenabled WHEN 'O' THEN NULL WHEN 'A' THEN 'always' WHEN 'R' THEN 'on replicas only' ELSE 'disabled' END)
FROM ours JOIN pg_trigger ON tgrelid = ours.oid WHERE NOT tgisinternal

UNION ALL
SELECT relname::text, 'rule ' || rulename, pg_get_ruledef(pg_rewrite.oid, true)
FROM ours JOIN pg_rewrite ON ev_class = ours.oid WHERE rulename <> '_RETURN'

UNION ALL
SELECT relname::text, 'policy ' || polname,
       concat_ws(' ', CASE WHEN NOT polpermissive THEN 'restrictive' END, polcmd::text,
           'using ' || pg_get_expr(polqual, polrelid, true), 'check ' || pg_get_expr(polwithcheck, polrelid, true))
FROM ours JOIN pg_policy ON polrelid = ours.oid

UNION ALL
SELECT relname::text, 'child ' || inhrelid::regclass, 'its rows count as rows of ' || relname
FROM ours JOIN pg_inherits ON inhparent = ours.oid

UNION ALL
SELECT relname::text, 'parent ' || inhparent::regclass, 'its rows count as rows of ' || inhparent::regclass
FROM ours JOIN pg_inherits ON inhrelid = ours.oid

UNION ALL
SELECT proname || '()', 'function',
       concat_ws(' ', lanname, 'returns', format_type(prorettype, NULL), CASE WHEN prosecdef THEN 'security definer' END,
           array_to_string(proconfig, ', '), CASE WHEN proretset THEN 'set' END, prosrc)
FROM pg_proc JOIN pg_language ON pg_language.oid = prolang JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE nspname = %(schema)s AND proname = ANY (%(functions)s) AND pronargs = 0
